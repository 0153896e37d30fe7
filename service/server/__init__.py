"""The process around the application: workers and signals, HTTP connections and WebSockets with their limits."""
