"""Commands that run Byline or administer it, where its database and its keys are."""
