"""What goes wrong in production, done to a real service under load, and counted: `make chaos`, and small in the tests."""
