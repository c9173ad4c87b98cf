"""GRPO's arithmetic: which rollouts are attributed, and how each one's advantage is spread over its tokens."""
