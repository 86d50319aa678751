"""What makes P2Es a platform: dataset, neighbours, tracking, registry, jobs. Knows nothing of diffusion."""
