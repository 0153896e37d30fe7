"""HTTP: bytes and headers to valid requests, results to replies, errors to statuses. No arithmetic."""
