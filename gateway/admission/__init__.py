"""Step 1 and 2 of the journey: who may ask."""
