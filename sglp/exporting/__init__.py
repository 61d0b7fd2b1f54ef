"""Export networks to formats of other programs; each file is verified before it appears."""
