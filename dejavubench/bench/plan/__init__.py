"""What this session measures, and each worker's place in it: resolved once and handed down."""
