"""How people sign in to Byline itself: at its own page among people it keeps, or at an external issuer."""
