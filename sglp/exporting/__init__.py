"""Networks in formats that other programs run; each file is compared with the network before it is there."""
