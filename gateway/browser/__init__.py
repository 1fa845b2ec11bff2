"""The base of every page: browser sessions, cookies, forms and the rendering of templates."""
