// The console: a door, and behind it the shell, for as long as the token is good.

import { signIn } from "./login.js";
import { isBack } from "./servers.js";
import { found, token } from "./session.js";
import { Shell } from "./shell.js";
import { applyTheme } from "./theme.js";

const root = document.getElementById("app");
let message = "";

applyTheme();
await found();
if (isBack()) location.hash = "#/servers";
for (;;) {
  if (!token.get()) await signIn(root, message);
  message = await new Shell(root).run();
}
