"""What a network is for: its loss, its data, how it is tuned and how it is evaluated."""
