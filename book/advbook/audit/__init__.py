"""How much hangs on the attack, and what each ingredient does."""
