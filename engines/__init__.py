"""How engine processes are described, started and watched; and the engine double used without a GPU."""
