"""What trains a policy: rollouts, losses, the value function, SFT, and what all algorithms share."""
