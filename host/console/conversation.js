// One conversation: what was said, what is being said, and where to go on.

import { all, ApiError, call, newKey, path } from "./api.js";
import { attached, parted } from "./attachments.js";
import { answer, requestCard, waiting } from "./approvals.js";
import { Composer } from "./composer.js";
import { confirmed, h, refill } from "./dom.js";
import { runEvents, say } from "./events.js";
import { offerExport } from "./export.js";
import { icon } from "./icons.js";
import { agentTurn, endedTurn, personTurn } from "./messages.js";
import { renamed } from "./rename.js";
import { RunView } from "./run.js";

const LOOK_EVERY_MS = 3000;
const SHOWN_AT_ONCE = 200;
const WISHES = ["remember that my cat is called Miso", "run uname -a", "write a short poem to poem.txt", "every day at 9 tell me the news"];

export class ConversationView {
  /** `id` null is a conversation that begins with the first message. `shell` has notice(), went(), left(), reload(). */
  constructor(id, shell) {
    this.id = id;
    this.shell = shell;
    this.gone = new AbortController();
    this.count = null;
    this.pending = 0;
    this.cards = new Map();
    this.view = null;
    this.last = null;
    this.list = h("div", { class: "turns" });
    this.status = h("p", { class: "unseen", role: "status" });
    this.scroller = h("section", { class: "transcript", tabindex: "0", "aria-label": "Conversation" }, this.list);
    this.latest = h("button", { class: "latest", type: "button", hidden: true }, icon("down"), "Latest");
    this.composer = new Composer({ key: id ?? "", onSend: (text, how) => this.send(text, how), onFiles: (files) => attached(this.id, files), onStop: () => this.stop(), told: (said) => shell.notice(said) });
    this.node = h("div", { class: "conversation" }, this.scroller, this.latest, this.composer.node, this.status);
    this.composer.tray.listen(this.node);
    this.latest.addEventListener("click", () => this.toEnd());
    this.following = true;
    this.top = 0;
    this.scroller.addEventListener("scroll", () => this.scrolled());
  }

  /** What stands beside the title. */
  get tools() {
    if (this.id === null) return [];
    const button = (name, drawn, click) => h("button", { class: "ghost", type: "button", title: name, "aria-label": name, on: { click } }, icon(drawn));
    return [
      h("a", { class: "ghost", href: `#/workspace//${encodeURIComponent(this.id)}`, title: "Files of this conversation", "aria-label": "Files of this conversation" }, icon("folder")),
      button("Rename this conversation", "pencil", () => this.rename()),
      button("Export this conversation", "export", () => offerExport(this.id, this.shell)),
      button("Delete this conversation", "trash", () => this.remove()),
    ];
  }

  async open() {
    if (this.id === null) {
      this.welcome();
    } else {
      refill(this.list, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
      await this.load();
      this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
    }
    if (!matchMedia("(pointer: coarse)").matches) this.composer.field.focus();
  }

  close() {
    clearInterval(this.timer);
    this.gone.abort();
  }

  welcome() {
    const wishes = WISHES.map((wish) => h("button", { class: "wish", type: "button", on: { click: () => {
      this.composer.write(wish);
      this.composer.field.focus();
    } } }, wish));
    refill(this.list, h("div", { class: "welcome" }, h("h2", {}, "What shall we do?"),
      h("p", { class: "quiet" }, "The agent works on files and runs commands inside its sandbox, remembers, and does things on schedule."),
      h("div", { class: "wishes" }, ...wishes)));
  }

  /** Load what is stored, and follow the run that is going on, if one is. */
  async load() {
    try {
      const about = await call("GET", path`/chat/${this.id}`, { signal: this.gone.signal });
      const [messages, runs] = await Promise.all([
        all(path`/chat/${this.id}/messages`, "messages", { signal: this.gone.signal }),
        all(path`/chat/${this.id}/runs`, "runs", { signal: this.gone.signal }),
      ]);
      this.count = about.message_count;
      this.pending = about.pending;
      this.shell.conversations.know(about);
      this.showStored(messages, runs);
      if (about.pending) await this.showWaiting();
      const running = runs.find((run) => run.status === "running");
      if (running) this.attend(runEvents(this.id, running.run_id, this.gone.signal));
      else if (runs[0]?.status !== "paused") this.sendNext();
    } catch (error) {
      this.refused(error);
    }
  }

  /** Show what waits for the person here; a card that stays keeps what was typed into it. */
  async showWaiting() {
    const requests = await waiting(this.id, this.gone.signal);
    for (const old of this.cards.values()) old.remove();
    const card = (request) => this.cards.get(request.id) ?? requestCard(request, (said) => this.decide(request, said));
    this.cards = new Map(requests.map((request) => [request.id, card(request)]));
    this.list.append(...this.cards.values());
    this.toEnd();
  }

  async decide(request, said) {
    try {
      const { run_id } = await answer(request, said);
      await this.recount();
      await this.showWaiting();
      if (run_id) await this.attend(runEvents(this.id, run_id, this.gone.signal));
    } catch (error) {
      this.refused(error);
      await this.load();
    }
  }

  showStored(messages, runs) {
    const follow = this.list.querySelector(".turn") === null || this.following;
    const { scrollTop } = this.scroller;
    const turns = this.turns(messages, runs);
    refill(this.list, turns.slice(-SHOWN_AT_ONCE).map((turn) => turn()));
    this.offerEarlier(turns.slice(0, -SHOWN_AT_ONCE));
    if (messages.length === 0) refill(this.list, h("p", { class: "empty" }, "Nothing has been said here yet."));
    this.offerToEdit();
    if (follow) this.toEnd();
    else this.scroller.scrollTop = scrollTop;
  }

  /** Return what makes each turn: the messages, and where its runs ended, if not well, how. */
  turns(messages, runs) {
    const made = [];
    const byEnd = new Map(runs.filter((run) => run.finished_at).map((run) => [run.finished_at, run]));
    const failed = Map.groupBy(runs.filter((run) => !["success", "running"].includes(run.status)).reverse(), (run) => run.message_id);
    const [newest] = runs;
    let ended = [];
    const endings = (until = null) => {
      while (ended.length && (until === null || ended[0].finished_at < until)) {
        const run = ended.shift();
        made.push(() => endedTurn(run, run === newest ? this.how() : {}));
      }
    };
    this.last = null;
    for (const message of messages) {
      if (message.role === "user") {
        endings();
        ended = [...failed.get(message.id) ?? []];
        const { words, files } = parted(message.content);
        this.last = { id: message.id, text: words, files, mine: message.sender === "user" };
        made.push(() => personTurn(words, { sender: message.sender_name, created_at: message.created_at, conversationId: this.id, files }));
      } else {
        endings(message.created_at);
        made.push(() => agentTurn(message, byEnd.get(message.created_at)));
      }
    }
    endings();
    return made;
  }

  /** What can be done after a run that didn't end well. */
  how() {
    return { onResume: (tokens) => this.resume(tokens), onRetry: this.last?.mine ? () => this.retry() : null };
  }

  /** The last message, if it is of the person here, can be said again in other words. */
  offerToEdit() {
    this.list.querySelector(".edit")?.remove();
    if (!this.last?.mine || this.view !== null) return;
    const edit = h("button", { class: "textual edit", type: "button", on: { click: () => this.composer.edit(this.last.text, this.last.id, this.last.files) } }, icon("pencil"), "Edit");
    [...this.list.querySelectorAll(".turn.person")].at(-1)?.append(edit);
  }

  offerEarlier(earlier) {
    if (earlier.length === 0) return;
    const next = earlier.slice(-SHOWN_AT_ONCE);
    const button = h("button", { class: "button earlier", type: "button" }, `Show ${next.length} earlier messages`);
    button.addEventListener("click", () => {
      button.replaceWith(...next.map((turn) => turn()));
      this.offerEarlier(earlier.slice(0, -SHOWN_AT_ONCE));
    });
    this.list.prepend(button);
  }

  /** Say something; `replaces` is the last message, in whose place it is said; `attachments` are `files` for the host. */
  send(text, { thinking, model, replaces = null, attachments = null, files = attachments } = {}) {
    if (this.id === null || this.count === 0) refill(this.list);
    if (replaces !== null) this.takeBack();
    const named = files?.map((file) => ({ name: file.name ?? file.path.split("/").at(-1) }));
    const turn = personTurn(text, { files: named });
    this.list.append(turn);
    const body = { message: text, show_tool_use: true, deny_pending: true, ...(this.id && { conversation_id: this.id }), ...(thinking && { thinking }), ...(model && { model }), ...(replaces && { replaces }), ...(attachments && { attachments }) };
    const refused = (error) => {
      turn.remove();
      this.composer.giveBack(text, files ?? []);
      if (this.list.childNodes.length === 0) this.welcome();
      this.refused(error);
      if (replaces !== null && this.id !== null) this.load();
    };
    this.last = { id: null, text, files: attachments?.filter((file) => file.path) ?? [], mine: true };
    return this.attend(say("/chat", body, newKey(), this.gone.signal), refused);
  }

  /** Take the last message and what followed it off the page. */
  takeBack() {
    const person = [...this.list.querySelectorAll(".turn.person")].at(-1);
    while (person?.nextSibling) person.nextSibling.remove();
    person?.remove();
  }

  retry() {
    const { text, id, files } = this.last;
    return this.send(text, { ...this.composer.wishes, replaces: id, ...(files.length && { attachments: files.map((file) => ({ path: file.path })) }) });
  }

  resume(tokens) {
    const body = { show_tool_use: true, ...(tokens && { allow_tokens: tokens }) };
    return this.attend(say(path`/chat/${this.id}/resume`, body, newKey(), this.gone.signal), (error) => this.refused(error));
  }

  /** Show a run's events to their end. */
  async attend(events, refused = (error) => this.refused(error)) {
    const view = new RunView(this.how(), this.id);
    this.view = view;
    for (const old of this.list.querySelectorAll(".actions, .resume")) old.remove();
    this.offerToEdit();
    this.list.append(view.node);
    this.composer.setRunning(true);
    this.announce("The agent is at work");
    this.toEnd();
    try {
      for await (const event of events) {
        view.show(event);
        if (event.name === "start") this.began(event.data);
        requestAnimationFrame(() => this.following && this.toEnd());
      }
      if (!view.ended) view.fail("The run ended without an answer.");
      this.announce(view.done?.status === "success" ? "The answer is complete" : "The run has ended");
    } catch (error) {
      if (error.name === "AbortError") return;
      if (view.ids === null) {
        view.node.remove();
        refused(error);
      } else {
        view.fail(error.message);
      }
    } finally {
      if (this.view === view) this.view = null;
      this.composer.setRunning(this.view !== null);
      this.offerToEdit();
    }
    await this.recount();
    if (view.done?.requests?.some(({ kind }) => kind !== "budget")) await this.showWaiting();
    if (view.ids !== null && view.done?.status !== "paused") this.sendNext();
  }

  /** Say what people wrote while the agent was at work. */
  sendNext() {
    if (this.view !== null || this.gone.signal.aborted) return;
    const next = this.composer.next();
    if (next !== null) this.send(next.text, next);
  }

  began({ conversation_id: id, message_id }) {
    if (this.last !== null) this.last.id ??= message_id;
    if (this.id !== null) return;
    this.id = id;
    this.composer.rekey(id);
    this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
    this.shell.went(id);
  }

  async stop() {
    if (this.id === null) return;
    this.announce("Stopping");
    try {
      await call("POST", path`/chat/${this.id}/cancel`);
    } catch (error) {
      if (error.status !== 409) this.shell.notice(error);
    }
  }

  /** Look whether something happened that was not begun here. */
  async look() {
    if (this.view !== null || document.hidden) return;
    try {
      const about = await call("GET", path`/chat/${this.id}`, { signal: this.gone.signal });
      const changed = about.message_count !== this.count || about.pending !== this.pending || about.status === "running";
      if (this.view === null && changed) await this.load();
    } catch (error) {
      if (error.status === 404) this.refused(error);
    }
  }

  async recount() {
    try {
      const about = await call("GET", path`/chat/${this.id}`, { signal: this.gone.signal });
      [this.count, this.pending] = [about.message_count, about.pending];
    } catch {
      this.count = null;
    }
    this.shell.reload();
  }

  async rename() {
    if (await renamed(this.id, this.shell.conversations.title(this.id))) await this.shell.reload();
  }

  async remove() {
    const words = { title: "Delete this conversation?", text: "Its messages, tasks and runs go with it. This can’t be undone.", action: "Delete it" };
    if (!(await confirmed(words))) return;
    try {
      await call("DELETE", path`/chat/${this.id}`);
      this.shell.left();
    } catch (error) {
      this.shell.notice(error);
    }
  }

  refused(error) {
    if (error.name === "AbortError" || error.status === 401) return;
    if (error instanceof ApiError && error.status === 404 && this.id !== null) {
      clearInterval(this.timer);
      refill(this.list, h("div", { class: "empty" }, h("h2", {}, "This conversation is not here"), h("p", {}, error.message)));
      return;
    }
    this.shell.notice(error.retryAfter ? new Error(`${error.message} Try again in ${error.retryAfter} s.`) : error);
    if (!(error instanceof ApiError)) throw error;
  }

  announce(words) {
    refill(this.status, words);
  }

  /** Whoever scrolls up wants to read there; whoever comes to the end wants to see it grow. */
  scrolled() {
    const { scrollTop } = this.scroller;
    if (scrollTop < this.top - 2) this.following = false;
    if (this.atEnd()) this.following = true;
    this.top = scrollTop;
    this.latest.hidden = this.atEnd();
  }

  atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  toEnd() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
    this.latest.hidden = true;
  }
}
