"""Over many runs: asking many questions, and comparing the answers."""
