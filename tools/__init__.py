"""Commands for maintaining the project; none of them is a stage."""
