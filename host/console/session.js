// Who is signed in here: the token, in this tab or, if people want it, in this browser until they sign out.
// Tabs ask each other, so that a second one needs no second login.

const KEPT = "picoclaw.token";
const WHOSE = "picoclaw.principal";
const ANSWER_MS = 250;

const tabs = new BroadcastChannel("picoclaw");

/** Says "signed-out" when another tab signed out, "left" when what was written here is nobody's any more. */
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

/** Forget the token in every tab, and here what was written and where people were. */
export function signOut() {
  token.forget();
  leave();
  tabs.postMessage({ say: "signed out" });
}

/** The token is a principal's. If another one's was here before, nothing of that is left. */
export function begin(principal) {
  const [before, value] = [sessionStorage.getItem(WHOSE), sessionStorage.getItem(KEPT)];
  if (before !== null && before !== principal) leave();
  sessionStorage.setItem(WHOSE, principal);
  sessionStorage.setItem(KEPT, value);
}

function leave() {
  sessionStorage.clear();
  history.replaceState(null, "", location.pathname);
  session.dispatchEvent(new Event("left"));
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
  leave();
  session.dispatchEvent(new Event("signed-out"));
});
