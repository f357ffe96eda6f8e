"""Many runs, one table: who runs them, what they say, how it is shown."""
