"""Three independent systems to try Byline against: a CRM, billing and support, each with its own people."""
