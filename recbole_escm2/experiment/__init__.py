"""Many runs, one table: who runs them, and what they say."""
