"""Pure functions of features and labels."""
