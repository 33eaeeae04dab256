"""The aggregation server: it collects encrypted updates, adds them up, and publishes what key holders open."""
