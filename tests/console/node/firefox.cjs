// Playwright always sets media features, by a command of WebDriver BiDi that Firefox ESR doesn't have yet. Loaded
// into Playwright's own Node (NODE_OPTIONS), this leaves that one command out where it is sent to Firefox.
const Module = require("node:module");

const compile = Module.prototype._compile;
const COMMAND = /(?:this\._session|this\._browser\._browserSession)\.send\("emulation\.setMediaFeaturesOverride", /g;

Module.prototype._compile = function (source, name, ...others) {
  const known = name.endsWith("coreBundle.js") ? source.replace(COMMAND, "((...unsent) => Promise.resolve())(") : source;
  return compile.call(this, known, name, ...others);
};
