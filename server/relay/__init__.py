"""The path of a call: client to provider and back, its entries made durable on the way."""
