#!/usr/bin/env node
// Starts the control plane. Plain JavaScript for Node 20 and newer: it finds Node 24 by itself, whatever Node runs it.
import { becomeProgram } from "../../packaging/launch/launch.mjs";

await becomeProgram(import.meta.url, "../main");
