"""Where joules come from. Each meter yields cumulative readings and knows nothing of calls."""
