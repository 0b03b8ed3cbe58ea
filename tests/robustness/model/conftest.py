"""The model of the delivery rules."""
