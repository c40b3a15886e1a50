"""`baton chaos`: a throw-away fleet in a storm, and whether every request came out of it right."""
