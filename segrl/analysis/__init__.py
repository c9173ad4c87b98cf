"""What importance looks like on a set of traces ([IG] section 3, appendix A), and how far its measures are right."""
