"""What is measured, against what: the service beside the endpoint that most people write."""
