"""A load generator for a deployment of the service, near or far.

    lookup ─► model ─► traffic ─► request bytes ─┐
    arrivals ─► due times ─ alarm ─► run ─► link (a connection) ─► tally ─► summary ─► display

It imports nothing of the service: it knows the HTTP contract alone, as any client does.
"""
