"""What users could pick instead, each as its own documentation recommends, in an environment of its own."""
