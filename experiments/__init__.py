"""Commands that run the pipeline many times and compare the results."""
