"""Entry point of the agent."""
