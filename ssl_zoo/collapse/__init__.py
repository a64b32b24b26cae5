"""What keeps a method from collapsing, and what notices when it does."""
