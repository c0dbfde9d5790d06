// Who is signed in here: the token, in this tab or, if people want it, in this browser until they sign out.
// Tabs ask each other, so that a second one needs no second login.

const KEPT = "picoclaw.token";
const ANSWER_MS = 250;

const tabs = new BroadcastChannel("picoclaw");

/** Says "signed-out" when another tab signed out. */
export const session = new EventTarget();

export const token = {
  get: () => sessionStorage.getItem(KEPT) ?? localStorage.getItem(KEPT) ?? "",
  /** Keep it for this tab and those that ask it; `stay`: in this browser, also when all of them are closed. */
  set(value, { stay = false } = {}) {
    sessionStorage.setItem(KEPT, value);
    if (stay) localStorage.setItem(KEPT, value);
    else localStorage.removeItem(KEPT);
  },
  /** Forget it here; what the browser keeps goes too, unless another tab has put a newer one there. */
  forget() {
    const value = token.get();
    sessionStorage.removeItem(KEPT);
    if (localStorage.getItem(KEPT) === value) localStorage.removeItem(KEPT);
  },
};

/** Forget the token in every tab. */
export function signOut() {
  token.forget();
  tabs.postMessage({ say: "signed out" });
}

/** Resolve once the token is here, if this browser or another tab has one. */
export function found() {
  if (token.get()) return Promise.resolve();
  return new Promise((resolve) => {
    const answered = ({ data }) => {
      if (data.say !== "token") return;
      sessionStorage.setItem(KEPT, data.token);
      tabs.removeEventListener("message", answered);
      resolve();
    };
    tabs.addEventListener("message", answered);
    tabs.postMessage({ say: "who has a token?" });
    setTimeout(resolve, ANSWER_MS);
  });
}

tabs.addEventListener("message", ({ data }) => {
  if (data.say === "who has a token?" && token.get()) tabs.postMessage({ say: "token", token: token.get() });
  if (data.say !== "signed out" || !token.get()) return;
  token.forget();
  session.dispatchEvent(new Event("signed-out"));
});
