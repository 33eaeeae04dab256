"""Demo: 24 phones learn activity recognition; six people who never took part test it."""
