"""What the stages share: their parameters, the user's files, how a stage runs."""
