"""Pictures of growmaps, profiles and reports, and one page of HTML that shows a whole run. Each function takes results and returns bytes or text."""
