"""The search for violations: small worlds, every schedule with few deviations, and guided random search beyond."""
