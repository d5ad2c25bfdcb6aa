"""What is done to generated weights before they are used: each step says what it changed."""
