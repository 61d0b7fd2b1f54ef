"""Code that the stages share: parameters, the user's files, and how a stage runs."""
