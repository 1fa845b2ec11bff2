"""How people sign in to Byline itself: with the built-in sign-in, or at an external issuer."""
