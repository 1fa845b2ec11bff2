"""Commands that talk to a gateway, as whoever signed in."""
