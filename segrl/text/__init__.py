"""What is known of texts and ids alone: prompts, boxes, and the characters of each id. No trace is known here."""
