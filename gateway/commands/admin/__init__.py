"""Commands that run or administer Byline, on a machine that has its database and its keys."""
