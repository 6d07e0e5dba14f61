"""From a query to hits: query model, planner, fusion."""
