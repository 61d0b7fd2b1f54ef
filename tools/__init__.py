"""Commands about the project itself; none of them is a stage."""
