"""What runs ask people, and what people answer."""
