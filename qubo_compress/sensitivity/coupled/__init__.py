"""Choices to remove coupled channels: what each costs the network, what it saves, and the plan that removes them."""
