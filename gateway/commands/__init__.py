"""What `byline` offers besides starting a part of the stack."""
